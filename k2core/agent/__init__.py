"""The agent: a loop over a chat model and tools, its journal, its budgets. Policy, no numerics."""

"""Whether a backend does what the contracts say: ops, caches and whole models against the oracle, by bounds that are derived.

spec_files  a specification, key by key          records     what it says
contracts   specs -> records, checked            fitting     whether a contract is what its probe reads
probes/     an op as a checkpoint of its own     cases       contract -> inputs, by a seed or by Hypothesis
properties  what must hold of every case         whole_model the rules end to end
kit         op × backend × property              report      where two numbers differ by more than they may

Every op is observed through the doors that users go through: a backend's `load`, a model's `forward`, its seam of the experts.
So nothing has to be added to a backend, and what is judged is what runs.
"""

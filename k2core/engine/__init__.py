"""The engine: from messages to a streamed turn over a loaded model. Mechanism, no policy."""

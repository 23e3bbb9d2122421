"""JSON Schemas as rules of a grammar: `reader` makes `shapes` of a schema, `rules` writes them down."""

from k2core.engine.schemas.rules import BASE, Rules, rules, spellings

__all__ = ["BASE", "Rules", "rules", "spellings"]

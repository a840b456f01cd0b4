"""House rules, checked: tools, imports, generated code, one list per concept, documentation, units."""

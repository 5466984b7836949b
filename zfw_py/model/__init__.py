"""Pure values: prefixes, ports, rules. They parse and validate; no I/O, no kernel."""

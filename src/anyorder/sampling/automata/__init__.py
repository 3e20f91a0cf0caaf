"""Finite automata of guides: what a text may be (`pattern`), written as a regex (`regex`) or a JSON
Schema (`json_schema`), as a machine over bytes (`byte_automaton`) and over tokens
(`token_automaton`)."""

"""Sources of hypotheses: a search over knobs, any command, people, other fleets."""

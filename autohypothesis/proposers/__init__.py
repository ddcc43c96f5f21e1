"""Where hypotheses come from: a search over knobs, any command, people."""

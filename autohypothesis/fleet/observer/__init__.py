"""Who decides: settles, takes ideas in, hands work out, and says what was learnt."""

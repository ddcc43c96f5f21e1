"""Output for people: tables, curves, pictures, the console and the streams."""

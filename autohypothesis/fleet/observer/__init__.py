"""The observer: takes proposals in, dispatches them, settles, and publishes."""

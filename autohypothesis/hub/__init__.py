"""The hub: agents on many machines share commits, results and ideas."""

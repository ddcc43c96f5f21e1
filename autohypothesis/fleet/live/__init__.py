"""Which processes live, how they are stopped, and the steering that binds them all."""

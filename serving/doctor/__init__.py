"""What this machine, its packages and a running server are fit for, and what to do about what is not (``convoy doctor``)."""

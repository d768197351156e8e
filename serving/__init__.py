"""Serving: the client, the model repository, the Triton launcher and batch scoring. No torch in here."""

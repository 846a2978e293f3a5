"""Scripts that run on devices: standard library only, Python 3.9 or newer. They are sent, never imported here."""

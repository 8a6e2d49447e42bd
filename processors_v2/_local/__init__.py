"""Parts of the embedded stack; the public face is ``processors_v2.local``."""

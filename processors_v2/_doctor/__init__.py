"""The examination behind ``processors_v2.doctor``; needs no extra."""

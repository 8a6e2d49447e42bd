"""The command line. People run ``stage-tracker``; what it does is said in docs/cli.md."""

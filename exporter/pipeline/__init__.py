"""Plans to steps to outcomes. Everything the command line can do is a function here."""

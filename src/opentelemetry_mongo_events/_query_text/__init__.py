"""Query text: a command as JSON, with its values masked or raw."""

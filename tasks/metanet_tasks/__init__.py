"""What to do with a zoo: data module, tasks, reports and the command line."""

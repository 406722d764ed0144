"""The `xok` command, one file per subcommand."""

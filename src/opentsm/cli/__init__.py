"""The ``opentsm`` command. ``main`` holds the list of commands; each of them has a module of its own."""

"""Tables and progress printed for people."""

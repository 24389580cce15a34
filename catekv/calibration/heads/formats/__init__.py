"""Head files of other projects, a module each: what is read, what is written, how one is told."""

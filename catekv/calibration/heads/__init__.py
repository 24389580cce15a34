"""Which heads of a model need their entries: measured, compared, exchanged with other projects."""

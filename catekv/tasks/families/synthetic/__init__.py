"""A code in one paragraph of a document, early, in the middle or late (ATSKV's ``synthetic``)."""

"""Reading a prompt with little memory, and the arithmetic of that memory."""

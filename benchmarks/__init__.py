"""k24lab beside other libraries, beside itself, and on a GPU."""

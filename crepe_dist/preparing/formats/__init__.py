"""What texts come in: each format cuts a file into blocks, in one process, and parses a block into rows, in any."""

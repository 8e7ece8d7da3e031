"""File formats. Each has a cutter, which runs in one process and yields blocks, and a parser, which runs in workers."""

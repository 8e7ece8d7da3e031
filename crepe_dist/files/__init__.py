"""Bounded and atomic access to files, which may be untrusted.

* ``safe_read``: readers that never block on a pipe, read a device or exceed a memory limit.
* ``json_file``: JSON files with limits on their size and structure.
* ``atomic_write``: writers whose file is either complete or absent, even after a kill or a power failure.
* ``output_streams``: pipes, devices and open files as outputs, such as ``/dev/stdout``.
* ``csv_cells``: CSV files whose cells no spreadsheet computes as a formula.
* ``folders``: temporary folders and the cache.
"""

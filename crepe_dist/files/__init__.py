"""Safe reading of untrusted files, with limits, and atomic writing.

* ``safe_read``: readers that never block on a pipe, read a device or exceed a memory limit.
* ``json_file``: JSON files with limits on their size and structure.
* ``atomic_write``: writers that never leave an incomplete file, even after a kill or a power failure.
* ``output_streams``: pipes, devices and open files as outputs, such as ``/dev/stdout``.
* ``csv_cells``: CSV files whose cells are never evaluated as formulas by a spreadsheet.
* ``folders``: temporary folders and the cache.
"""

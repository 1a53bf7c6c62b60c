"""Everything that a training imports, for the process whose forks are the workers of a sweep."""

from __future__ import annotations

from sftpipe.terminal import quiet, quiet_libraries

with quiet(), quiet_libraries():
    import sftpipe.model.adapters
    import sftpipe.model.load
    import sftpipe.pipeline
    import sftpipe.runs.card
    import sftpipe.runs.record
    import sftpipe.runs.report.loss_png
    import sftpipe.runs.report.page
    import sftpipe.training.rehearsal
    import sftpipe.training.tracking
    import sftpipe.training.trainer
    import sftpipe.worker  # noqa: F401

"""A sweep: many runs in one folder, a process for each.

Each module, with what goes in and what comes out:

folder.py      a path                -> SweepFolder: its files, the record of each job
place.py       a job's config, words -> the folder of the job: of the same training, or new
metric.py      RunFolder, a name     -> the number that ranks a run, and its interval
table.py       SweepFolder           -> Table of ranked Rows; CSV, JSON, the terminal
page.py        Table                 -> sweep.html, with the metric against each parameter
processes.py   planned jobs          -> a worker process for each, on cores and GPUs of its own
slurm.py       planned jobs          -> jobs of Slurm, submitted, followed and stopped
slurm_job.py   a job of Slurm        -> its worker's exit code, or a checkpoint and the queue again
board.py       what workers say      -> a live table, or plain lines
sweep.py       Hydra's jobs          -> planned, run and recorded; what launchers and sweepers call
search.py      a space, Optuna       -> trials: asked, checked, run, pruned, told
"""

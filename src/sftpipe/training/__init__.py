"""Model and rows to a trained model.

Each module, with what goes in and what comes out:

rehearsal.py   TrainConfig, Weights            -> an error of upstream's objects, before any data
trainer.py     SFTConfig, model, adapter, rows -> SFTPipeTrainer: loss, evaluation, checkpoints
order.py       rows, seed, epoch               -> their order; the part of each process
sharding.py    a model, several processes      -> a part of it in each; what is trained whole again
divergence.py  a loss, a batch                 -> an error that says why it is no number
callbacks.py   a trainer                       -> progress bar, log file, stop on a signal
tracking.py    TrackingConfig                  -> a Tracker that mirrors the run, or does nothing
"""

"""Restores all films of a folder on several machines, with Ray, Slurm or Kubernetes.

An engine only decides where and when. Whatever it is, it calls one command, `vsfmanet cluster run LIST INDEX`, which
does what a batch does with one job: a process of its own, a watchdog, three attempts. A job is done by the record
beside its output, never by what an engine believes, and an output never replaces another; so a job that an engine
starts twice is made once, and the same command again does what is left.
"""

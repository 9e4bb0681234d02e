"""The server: durable jobs, a worker process that draws, and the HTTP dialects that clients already speak.

    settings.py   what a server is started with, and every limit
    job.py        a job as everybody sees it; submission.py  what is asked for, resolved and checked against the limits
    store.py      jobs on disk: SQLite, one writer, committed with fsync before anybody is told
    service.py    the core that all routes call: accept, cancel, pause, wait, events
    dispatch.py   whose turn it is; supervisor.py  the worker process, watched; worker.py  that process; wire.py  what they say
    models.py     the scanned index of models, by any of the names that clients use
    guard.py      who may call; app.py  all routes together; a file or folder of routes per dialect
    page/         HTML, CSS and JavaScript modules, no build step

Only `server.worker` loads torch, in a process of its own.
"""

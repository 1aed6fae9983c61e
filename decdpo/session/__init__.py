"""A run from its command to its end: a job, its run folder, an experiment that is trained.

What each module owns:

job         the processes of one launch, which start together and end together: the agreement on
            errors, the exit status, the worlds. It knows nothing of runs.
folder      the run folder as a place: it is made, and locked for one job at a time. ``room`` says
            what may lie in it before a run begins, ``record`` what it says of its run afterwards:
            its configuration, and run.json with every start.
experiment  the configuration with its objects on this process: shards, world, ensemble of agents,
            exchange, checkpoints. It is prepared in the same way to be trained and to be measured.
            ``identity`` says what its checkpoints are compared by.
training    the loop around an experiment: the first checkpoint, the record of the start, the page.
            ``saving`` says when a run saves besides; ``adoption`` takes over the agents of lost
            processes, ``growing`` gives a state to agents that a resumed run did not have.
measuring   the models of an experiment that is not trained, one after another; new people, each
            with a personal part of its own; the pairs of shards scored with a reference.
replay      a run made again in one process from its configuration and its history of agents.
start       what is known of a run before its first round. ``resuming`` says what a continued run
            does otherwise than before.
plan        what a run will need, before there is one. ``jobscript`` fills a job template in and
            compares what it asks for with that.
bundle      what a support desk needs to know of a run.
status      what the files of a run folder say of the run, at any moment. ``shown`` puts together
            what the page of a run shows.
endings     what stops a run, what is finished first, and what is said of it.

The order of calls of a run: ``job.launch`` starts the processes; the command reads the
configuration; ``folder.new_folder`` and ``folder.locked`` take the folder; ``experiment.prepare``
makes the objects, each kind once: index, world, device, ensemble, identity, exchange, checkpoints;
a resumed run loads its checkpoint and restores its records; ``training.execute`` trains;
``endings.finish`` says how it ended. The classes of algorithms, losses and policies are chosen in
``decdpo.build`` alone, and the loop is ``decdpo.train``.
"""

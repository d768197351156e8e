"""The batching configuration of a model, found by real load on a private server, in turns with the configuration in force.

========================  ================================================================================================
module                    holds
========================  ================================================================================================
``setting``               what is tuned: one choice of batch sizes, delay, instances and threads
``space``                 the choices that make sense for a model on a machine
``search``                how the space is searched
``objective``             what better means: throughput at several numbers of callers, within a latency budget
``contest``               two settings on one server, measured in turns
``tuning``                the whole: search, then the proof that the gain is real
``evidence``              what is written for people: the table, the plot, the configuration
========================  ================================================================================================
"""

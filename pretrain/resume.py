"""What two runs may differ in and still have their first epochs in common (Sections 3.3.2, 4.1)."""

# What decides the epochs before any teacher takes part. The lengths must agree to the end: a
# checkpoint holds the schedule, and mmengine continues with that.
FROM_THE_START = ('generations', 'confidence_penalty')


def may_differ(epoch: int, theirs: dict, ours: dict, another_run: bool) -> list[str]:
    """The keys of the identity that a checkpoint and the run that continues it may differ in.

    Runs that differ in the teacher alone, such as SE and SD, share all epochs before either is
    taught. A branch of another run may go on with other random numbers.

    Args:
        epoch: how many epochs the checkpoint has begun.
        theirs: the identity of the run that wrote it.
        ours: the identity of the run that shall continue it.
        another_run: whether these are two runs, and not one that is resumed.
    """
    keys = ['algorithm.name']
    if another_run:
        keys.append('data_seed')
    algorithms = theirs['algorithm'], ours['algorithm']
    if epoch <= min(algorithm['taught_after'] for algorithm in algorithms):
        late = set().union(*algorithms).difference(FROM_THE_START)
        keys += ['teacher', *(f'algorithm.{name}' for name in late)]
    return keys

"""What is wrong with this machine, this home or a service, on what evidence, and what to type.

Works with nothing running and on a broken home: it reads files itself, asks keeper and router only if they answer, and
changes nothing. A check is a function from a :class:`~turnout.doctor.scene.Scene` to what it found; ``diagnose`` runs
all of them, and a check that fails is itself a finding.
"""

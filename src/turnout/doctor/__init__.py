"""What is wrong with this machine, this home or a service, on what evidence, and what to type.

It works with nothing running and on a broken home: it reads files itself, asks keeper and router only if they answer,
and changes nothing. A check is a function from a :class:`~turnout.doctor.context.Context`, and of a service from its
:class:`~turnout.doctor.context.ServiceContext` too, to results; ``diagnose`` runs all checks, and a check that fails is
itself a finding.
"""

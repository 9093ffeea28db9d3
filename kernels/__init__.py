"""Operations that a batch of requests for different experts shares: linear, norm, attention, patching.

Every operation has one dispatching function, a reference in plain torch that defines its meaning, and faster
paths that are tested against that reference. Nothing here knows of models, bundles or requests.
"""

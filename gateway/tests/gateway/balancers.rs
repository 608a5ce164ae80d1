//! The load balancers of `deploy/`, as their real binaries, in front of real gateways.

"""What bounds a row whose goal is not met, by the row's key: from profiles, not from guesses.

Figures here are from the two shared cores on which the profiles were taken; the table has those of its own run.
"""

from __future__ import annotations

_CLIENT = """\
Most of such a call is the server's: a request written by hand to a raw socket takes 0.95 ms, the SDK's call 1.64 ms. \
Of the client's part 0.07 ms are ours, encoding included; the rest is HTTP. Requests go straight to a connection of \
httpcore, past its pool and past httpx, which took the ratio from 0.89 to 0.75 on a quiet machine. With other \
processes at work all figures grow, and the ratio with them."""

_COMPILED = """\
Two programs take longer than one that has both passes, and the answer of the first is waited for. Called by hand \
they take 0.2 to 0.5 ms more, of which 0.1 ms is the second dispatch; the rest is that JAX runs each program in a \
thread of its own beside ours, on whichever core: with jax_cpu_enable_async_dispatch off, the ratio of the costly \
steps was 1.01 and 1.04 instead of 1.07, of the cheap ones no other. Of Python there are 0.25 ms before the two \
dispatches: reading the inputs from their model (0.05 ms), copying, hashing and comparing them (0.1 ms), splitting \
off what is constant (0.03 ms), freeing the oldest residuals (0.02 ms), paths and the rest. In a tight loop the same \
lines take a tenth of that: here every run streams 7 to 26 MB of residuals through the processor's caches. What comes \
after the first dispatch runs beside it. Tried, without effect: one entry or two instead of eight, residuals dropped \
at once, one arena for malloc, large pages, splitting by a plan kept for each structure. There are no page faults, \
and no more residuals than the temporary memory of the one program: 6.6 and 26.2 MB in both."""

NOTES: dict[str, str] = {
    "graph": """\
Prefect's engine takes 2.6 ms of processor time per task run, and the four runs of a wave take turns at Python's \
lock. Measured inside a wave: the requests leave 2.7, 5.2, 7.9 and 9.8 ms after its beginning; each call takes 5 ms \
more than alone, as its Python waits for the others' engines; and between the first answer and the last pullback that \
leaves lie 29 ms. The same two waves on plain threads take 0.412 s. Each run makes eleven random identifiers, and the \
system call behind each gives the lock away. Tasks written by hand need 0.47 s here, where the design's page has \
0.452. Tried, without effect: reading results past Prefect's event loop, a shorter switch interval of Python's \
threads, the next task only when the call of the one before it is on its way. Not done: to send the request before \
Prefect has let its task begin, as limits and cancellation must come before a solve.""",
    "task": """\
A task that returns its argument costs nearly as much: this is Prefect's engine on this machine.""",
    "task-plain": """\
A name of its own in the UI, retries and four parameters cost 0.05 ms of a task's 2.5, measured with tasks that do \
nothing. The rest of the difference is our layer, which has a row of its own: the call's way from the plan to the \
handle, with a name for the server's output folder.""",
    "task-flat": """\
The server takes in what thousands of runs report, on the same two cores and later than it happens; plain tasks, run \
in turn with ours, drift alike. In four runs the last tenth took 0.78, 0.85, 1.04 and 1.42 times the first.""",
    "recipe-cheap": """\
Where a step costs little, solving the forward problem again (0.8 ms of 8) takes less than writing 26 MB of residuals \
(1.8 ms): this problem gains nothing from the cache, as docs/recipes.md says, and what is ahead is Python alone. The \
ratio was 0.86 to 0.92 in twelve runs.""",
    "compiled-costly": _COMPILED,
    "compiled-cheap": _COMPILED,
    "http-100": _CLIENT,
    "http-10000": _CLIENT,
    "http-1000000": """\
The server takes three quarters of this call (a request written by hand to a raw socket, encoded beforehand, takes 45 \
ms where ours takes 60 and the SDK's 80), and all clients wait for it alike. What is left to us is one pass each for \
encoding, sending, receiving and decoding.""",
    "shared-memory": """\
All clients wait for the server for three quarters of the time that the SDK's call takes (11.3 of 15 ms at 1e6 \
numbers, 28 of 38 at 4e6): it reads its input, doubles it, and writes its answer to a fresh file, in memory in pieces \
of 4 kB. Left to the client are one pass for writing the input, into a file that is warm (0.4 and 1.9 ms), one for \
copying the answer out of its file (1.3 and 4 to 6 ms) and one for reading it (0.4 and 1.9 ms): 0.93 of the SDK at \
best. To map the answer instead of copying it would gain 2 %, and a server that cuts the file short would take this \
process down with it. A server that we have started writes to the faster of two folders, see docs/wire.md. Earlier \
runs had two states here, up to 96 ms: on this virtual machine the first touch of memory that its host has taken \
back, which it does after two idle seconds, costs 1.9 s per GiB instead of 0.08. All contestants pay for it alike, so \
they now run 15 times before they are measured.""",
    "layer": """\
A small difference of two calls: 0.13 ms in a row of runs on a quiet machine, 0.2 to 0.3 ms beside others.""",
    "import": """\
Beyond JAX and Equinox the import takes 0.06 to 0.08 s, for 44 modules of 0.2 to 4 ms. HTTP is imported with the first \
address, as httpx brings click and rich: 0.08 s.""",
    "cutest-trust-constr": """\
By hand it ends where its barrier is still felt, and says that it has converged: on 105 of these problems 21 such \
claims were false. Ours goes on until complementarity is below a millionth, at the pace of the barrier.""",
    "cutest-lbfgs": """\
As line searches happen to go, single problems take from a third (PFIT2LS, 318 against 857) to four times as many \
(HS38, 140 against 33).""",
}

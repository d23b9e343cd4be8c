// SPDX-License-Identifier: MIT
// TCP echo with node's net module. `echo.js latency`: one connection.
"use strict";

const net = require("net");
const { exec } = require("child_process");

// As in ../echo.lua: name, connections, bytes of a message, messages.
const loads = [["echo_50", 50, 64, 100000], ["echo_500", 500, 64, 100000], ["echo_16k", 50, 16384, 50000]];

function start(port, load) {
  const what = load[0] === "latency" ? `latency ${port} 20000` : `client ${port} ${load.slice(1).join(" ")}`;
  return new Promise((resolve, reject) => {
    exec(`${process.env.BENCH_CLIENT} ${what}`, (error, said) => {
      if (error || !said.startsWith("fine")) reject(error || new Error(`client: ${said}`));
      else resolve(Number(said.slice(5)));
    });
  });
}

// Resolves to what the client had to say when it has been served.
async function serve(load) {
  const server = net.createServer({ noDelay: true }, (socket) => {
    socket.on("data", (data) => socket.write(data));
    socket.on("error", () => socket.destroy());
  });
  await new Promise((resolve) => server.listen({ port: 0, host: "127.0.0.1", backlog: 1024 }, resolve));
  const said = await start(server.address().port, load);
  await new Promise((resolve) => server.close(resolve));
  return said;
}

async function main() {
  if (process.argv[2] === "latency") {
    console.log(`latency ${await serve(["latency", 1])}`);
    return;
  }
  for (const load of loads) {
    const before = process.cpuUsage();
    await serve(load);
    const { user, system } = process.cpuUsage(before);
    console.log(`${load[0]} ${((user + system) * 1000 / load[3]).toFixed(1)}`);
  }
}

main().catch((error) => {
  console.log(String(error));
  process.exit(1);
});

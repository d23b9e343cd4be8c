// SPDX-License-Identifier: MIT
// HTTP with node: its net module, with a parser that only looks for the end of the head. `http.js module`: its http module.
"use strict";

const http = require("http");
const net = require("net");
const { exec } = require("child_process");

const connections = 64, body = "Hello, world!";
const answer = `HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: ${body.length}\r\n\r\n${body}`;
let served = 0;

function withModule() {
  return http.createServer((request, response) => {
    served++;
    response.writeHead(200, { "Content-Type": "text/plain", "Content-Length": body.length });
    response.end(body);
  });
}

function withNet() {
  return net.createServer({ noDelay: true }, (socket) => {
    let rest = "";
    socket.on("error", () => socket.destroy());
    socket.on("data", (data) => {
      rest += data.latin1Slice(0, data.length);
      for (let at; (at = rest.indexOf("\r\n\r\n")) >= 0;) {
        if (!rest.startsWith("GET ")) return socket.destroy();
        rest = rest.slice(at + 4);
        served++;
        socket.write(answer, "latin1");
      }
    });
  });
}

// Resolves to how many requests wrk has counted.
function load(port, seconds, more) {
  return new Promise((resolve, reject) => {
    exec(`${process.env.BENCH_WRK} -d${seconds}s http://127.0.0.1:${port}/ ${more}`, (error, said) => {
      const counted = Number((/\nfine (\d+)\n/.exec(said) || [])[1]);
      if (error || !(served >= counted && served <= counted + connections))
        reject(error || new Error(`${served} requests served, wrk says: ${said.trimEnd().split("\n").pop()}`));
      else
        resolve(counted);
    });
  });
}

async function measure(server) {
  await new Promise((resolve) => server.listen({ port: 0, host: "127.0.0.1", backlog: 1024 }, resolve));
  const port = server.address().port;
  await load(port, 1, "-- check");
  served = 0;
  const before = process.cpuUsage();
  await load(port, 2, "");
  const { user, system } = process.cpuUsage(before);
  console.log(`http ${((user + system) * 1000 / served).toFixed(1)}`);
  await new Promise((resolve) => server.close(resolve));
}

measure(process.argv[2] === "module" ? withModule() : withNet()).catch((error) => {
  console.log(String(error));
  process.exit(1);
});

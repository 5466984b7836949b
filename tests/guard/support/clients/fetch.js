// SPDX-License-Identifier: GPL-2.0-only
// fetch.js WAY HOST PORT: what an HTTP server says; or the addresses of a host, a line each.
const dns = require("dns").promises;
const http = require("http");
const net = require("net");

function get(options) {
	return new Promise((resolve, reject) => {
		const request = http.get(options, (answer) => {
			let body = "";
			answer.on("data", (part) => (body += part));
			answer.on("end", () => resolve(body));
		});
		request.on("error", reject);
	});
}

async function fetched(url) {
	return (await fetch(url)).text();
}

const ways = {
	get: (host, port) => get({ host, port }),
	// Addresses of both families in turn, each with a little time.
	autoselect: (host, port) => get({ host, port, autoSelectFamily: true }),
	ipv4: (host, port) => get({ host, port, family: 4 }),
	ipv6: (host, port) => get({ host, port, family: 6 }),
	fetch: (host, port) => fetched(`http://${host}:${port}/`),
	// The C library's, in a thread.
	lookup: async (host) => addresses(await dns.lookup(host, { all: true })),
	// c-ares, which asks by itself.
	resolve4: async (host) => lines(await dns.resolve4(host)),
	resolve6: async (host) => lines(await dns.resolve6(host)),
	resolver: async (host) => {
		const resolver = new dns.Resolver();
		resolver.setServers(["192.0.2.53", "[2001:db8::53]:53"]);
		return lines(await resolver.resolve4(host));
	},
};

const lines = (found) => found.map((each) => each + "\n").join("");
const addresses = (found) => lines(found.map((each) => each.address).sort());

const [way, host, port] = process.argv.slice(2);
ways[way](net.isIPv6(host) && way === "fetch" ? `[${host}]` : host, port).then(
	(text) => {
		process.stdout.write(text);
		// The server does not close the connection, and would be waited for.
		process.exit(0);
	},
	(error) => {
		const cause = error.cause || error;
		console.error(`${cause.name}: ${cause.code || cause.message}`);
		process.exit(1);
	},
);

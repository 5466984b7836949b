// SPDX-License-Identifier: GPL-2.0-only
// fetch WAY HOST PORT: what an HTTP server says; or the addresses of a host, a line each.
using System;
using System.IO;
using System.Linq;
using System.Net;
using System.Net.Sockets;
using System.Text;

class Fetch
{
	static int Main(string[] arguments)
	{
		try {
			Console.Write(By(arguments[0], arguments[1], arguments[2]));
			return 0;
		} catch (Exception error) {
			error = error.GetBaseException();
			Console.Error.WriteLine(error.GetType().Name + ": " + error.Message);
			return 1;
		}
	}

	static string By(string way, string host, string port)
	{
		var number = int.Parse(port);

		switch (way) {
		case "addresses":
			var found = Dns.GetHostAddresses(host).Select(each => each + "\n");
			return string.Concat(found.OrderBy(each => each, StringComparer.Ordinal));
		case "web":
			var name = host.Contains(":") ? "[" + host + "]" : host;
			return new WebClient().DownloadString("http://" + name + ":" + port + "/");
		case "client":
			using (var client = new TcpClient(host, number))
				return Converse(client.GetStream());
		case "socket":
			// Of both families at once: an IPv4 address goes out as a mapped one.
			using (var socket = new Socket(SocketType.Stream, ProtocolType.Tcp)) {
				socket.Connect(host, number);
				return Converse(new NetworkStream(socket));
			}
		}
		throw new ArgumentException(way);
	}

	static string Converse(Stream stream)
	{
		var request = Encoding.ASCII.GetBytes("GET / HTTP/1.0\r\n\r\n");

		stream.Write(request, 0, request.Length);
		using (var answer = new StreamReader(stream)) {
			while (answer.ReadLine() != "")
				;
			return answer.ReadLine() + "\n";
		}
	}
}

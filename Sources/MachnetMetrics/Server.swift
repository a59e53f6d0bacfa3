import Glibc
public import MachnetControl
import NIOCore
import NIOHTTP1
import NIOPosix

/// Serves `/metrics` on a thread of its own, to at most `clientsMax` clients at a time.
///
/// It asks the daemon as any client does, by the control socket: the engines are not concerned, and the control thread
/// at most every `freshness`.
public final class MetricsServer {
  private let group: MultiThreadedEventLoopGroup
  private let channel: any Channel
  /// Of the Unix socket, if it is one.
  private var path: String?

  /// Connections beyond these are closed at once.
  static let clientsMax = 16
  /// A connection without a whole request, or whose answer is not read, is closed after this.
  static let patience = TimeAmount.seconds(10)
  /// Bytes that a request may have: it has a path and some headers.
  static let requestMax = 16 << 10
  /// An answer is given again for so long.
  static let freshness = TimeAmount.milliseconds(200)

  /// Listens from now on.
  ///
  /// - Parameters:
  ///   - listen: where.
  ///   - control: the daemon's control socket, and who besides its user may connect: so for a socket of ours.
  public init(listen: Config.Metrics.Listen, control: Config.Control) throws {
    let group = MultiThreadedEventLoopGroup(numberOfThreads: 1)
    self.group = group
    let source = Source(controlSocket: control.socket)
    let gate = Gate()
    let bootstrap = ServerBootstrap(group: group)
      .serverChannelOption(.backlog, value: 16)
      .serverChannelOption(.socketOption(.so_reuseaddr), value: 1)
      .childChannelInitializer { channel in
        guard gate.enter() else { return channel.close() }
        channel.closeFuture.whenComplete { _ in gate.leave() }
        return channel.eventLoop.makeCompletedFuture {
          let pipeline = channel.pipeline.syncOperations
          try pipeline.addHandler(RequestLimit())
          try pipeline.addHandler(Patience())
          try pipeline.configureHTTPServerPipeline(withPipeliningAssistance: true, withErrorHandling: true)
          try pipeline.addHandler(Responder(source: source))
        }
      }
    do {
      switch listen {
      case .address(let host, let port):
        channel = try bootstrap.bind(host: host, port: port).wait()
      case .path(let path):
        self.path = path
        channel = try bootstrap.bind(unixDomainSocketPath: path, cleanupExistingSocketFile: true).wait()
        let gid = control.group.map { name in unsafe getgrnam(name).map { unsafe $0.pointee.gr_gid } ?? gid_t.max } ?? gid_t.max
        guard unsafe chown(path, uid_t.max, gid) == 0, unsafe chmod(path, mode_t(control.mode)) == 0 else {
          throw SystemError(errno, "set the permissions of \(path)")
        }
      }
    } catch {
      try? group.syncShutdownGracefully()
      throw (error as? IOError).map { SystemError($0.errnoCode, "serve metrics at \(listen), which metrics.listen in the config says") } ?? error
    }
  }

  public func stop() {
    try? channel.close().wait()
    if let path { _ = unsafe unlink(path) }
    try? group.syncShutdownGracefully()
  }
}

/// How many are inside. Used on the one event loop only.
private final class Gate: @unchecked Sendable {
  private var inside = 0

  func enter() -> Bool {
    inside += 1
    return inside <= MetricsServer.clientsMax
  }

  func leave() { inside -= 1 }
}

/// The daemon's word, asked for by its control socket. Used on the one event loop only.
private final class Source: @unchecked Sendable {
  private let controlSocket: String
  private var client: ControlClient?
  private var text = ""
  private var asked: NIODeadline?

  init(controlSocket: String) { self.controlSocket = controlSocket }

  func current() throws -> String {
    if let asked, NIODeadline.now() - asked < MetricsServer.freshness { return text }
    do {
      let client = try self.client ?? ControlClient(path: controlSocket)
      self.client = client
      text = PrometheusText.render(try client.status())
      asked = .now()
      return text
    } catch {
      client = nil
      throw error
    }
  }
}

/// Closes a connection that sends too much. One request is all that it has.
private final class RequestLimit: ChannelInboundHandler {
  typealias InboundIn = ByteBuffer
  private var count = 0

  func channelRead(context: ChannelHandlerContext, data: NIOAny) {
    count += unwrapInboundIn(data).readableBytes
    if count > MetricsServer.requestMax { return context.close(promise: nil) }
    context.fireChannelRead(data)
  }
}

/// Closes a connection whose time is over: a scraper asks once and reads the answer.
private final class Patience: ChannelInboundHandler {
  typealias InboundIn = ByteBuffer
  private var end: Scheduled<Void>?

  func handlerAdded(context: ChannelHandlerContext) {
    let channel = context.channel
    end = context.eventLoop.scheduleTask(in: MetricsServer.patience) { channel.close(promise: nil) }
  }

  func channelInactive(context: ChannelHandlerContext) {
    end?.cancel()
    context.fireChannelInactive()
  }
}

private final class Responder: ChannelInboundHandler {
  typealias InboundIn = HTTPServerRequestPart
  typealias OutboundOut = HTTPServerResponsePart
  private let source: Source
  private var head: HTTPRequestHead?

  init(source: Source) { self.source = source }

  func channelRead(context: ChannelHandlerContext, data: NIOAny) {
    switch unwrapInboundIn(data) {
    case .head(let head): self.head = head
    case .body: break
    case .end:
      guard let head else { return context.close(promise: nil) }
      self.head = nil
      answer(head, context)
    }
  }

  private func answer(_ request: HTTPRequestHead, _ context: ChannelHandlerContext) {
    var status = HTTPResponseStatus.ok
    var type = "text/plain; charset=utf-8"
    var text: String
    let path = request.uri.split(separator: "?", maxSplits: 1, omittingEmptySubsequences: false).first ?? ""
    if path != "/metrics" {
      (status, text) = (.notFound, "expected /metrics\n")
    } else if request.method != .GET && request.method != .HEAD {
      (status, text) = (.methodNotAllowed, "expected GET\n")
    } else {
      do {
        text = try source.current()
        type = PrometheusText.contentType
      } catch {
        (status, text) = (.serviceUnavailable, "the daemon does not answer: \(error)\n")
      }
    }
    let headers: HTTPHeaders = ["Content-Type": type, "Content-Length": "\(text.utf8.count)", "Connection": "close"]
    context.write(wrapOutboundOut(.head(HTTPResponseHead(version: request.version, status: status, headers: headers))), promise: nil)
    if request.method != .HEAD {
      context.write(wrapOutboundOut(.body(.byteBuffer(context.channel.allocator.buffer(string: text)))), promise: nil)
    }
    let channel = context.channel
    context.writeAndFlush(wrapOutboundOut(.end(nil))).whenComplete { _ in channel.close(promise: nil) }
  }

  func errorCaught(context: ChannelHandlerContext, error: any Error) { context.close(promise: nil) }
}

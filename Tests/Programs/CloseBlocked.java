import java.net.DatagramPacket;
import java.net.DatagramSocket;
import java.net.InetAddress;
import java.net.SocketException;
import java.nio.ByteBuffer;
import java.nio.channels.AsynchronousCloseException;
import java.nio.channels.DatagramChannel;
import java.net.InetSocketAddress;
import java.util.concurrent.atomic.AtomicReference;

/** Closes sockets while a thread is blocked in a receive: the JVM puts another file under the number and signals the thread. */
public class CloseBlocked {
  interface Receive {
    void run() throws Exception;
  }

  static void close(String name, Receive receive, Receive close) throws Exception {
    AtomicReference<Exception> end = new AtomicReference<>();
    Thread thread = new Thread(() -> {
      try {
        receive.run();
      } catch (Exception e) {
        end.set(e);
      }
    });
    thread.start();
    // In native code, where the sleep is.
    while (thread.getState() != Thread.State.RUNNABLE || thread.getStackTrace().length == 0
        || !thread.getStackTrace()[0].isNativeMethod()) Thread.sleep(1);
    close.run();
    thread.join(10000);
    System.out.println(name + " " + (end.get() == null ? "no end" : end.get().getClass().getSimpleName()));
    if (thread.isAlive()) System.exit(1);
  }

  public static void main(String[] args) throws Exception {
    InetAddress local = InetAddress.getByName("127.0.0.1");
    for (int round = 0; round < 20; round++) {
      DatagramSocket socket = new DatagramSocket(0, local);
      int port = socket.getLocalPort();
      close("socket", () -> socket.receive(new DatagramPacket(new byte[100], 100)), socket::close);
      DatagramChannel channel = DatagramChannel.open().bind(new InetSocketAddress(local, port));
      close("channel", () -> channel.receive(ByteBuffer.allocate(100)), channel::close);
      new DatagramSocket(port, local).close();
    }
    System.out.println("ok");
  }
}

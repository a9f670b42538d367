import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.ResultSet;
import java.util.Properties;

/**
 * Logs in with pgJDBC, with TLS or through a forwarder (without TLS). The connection is that of
 * libpq's variables. Run by scripts/drivers.
 */
public class Drivers {
  public static void main(String[] arguments) throws Exception {
    Properties properties = new Properties();
    properties.setProperty("user", System.getenv("PGUSER"));
    properties.setProperty("password", System.getenv("PGPASSWORD"));
    if ("disable".equals(System.getenv("PGSSLMODE"))) {
      properties.setProperty("sslmode", "disable");
    } else {
      properties.setProperty("sslmode", "verify-full");
      properties.setProperty("sslrootcert", System.getenv("PGSSLROOTCERT"));
      properties.setProperty("sslcert", System.getenv("PGSSLCERT"));
      // pgJDBC reads keys as DER.
      properties.setProperty("sslkey", arguments[0]);
    }
    String url = "jdbc:postgresql://" + System.getenv("PGHOST") + ":" + System.getenv("PGPORT") + "/postgres";
    try (Connection connection = DriverManager.getConnection(url, properties);
         ResultSet rows = connection.createStatement().executeQuery("select current_user")) {
      rows.next();
      String user = rows.getString(1);
      System.out.println("pgJDBC " + connection.getMetaData().getDriverVersion() + ": " + user);
      System.exit(user.equals(System.getenv("PGUSER")) ? 0 : 1);
    }
  }
}
